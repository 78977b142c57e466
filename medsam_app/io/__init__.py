"""Images and masks in files: reading, checking, writing, and reading back."""
