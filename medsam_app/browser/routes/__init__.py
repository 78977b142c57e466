"""HTTP routes of the page, and named endpoints for scripts."""
