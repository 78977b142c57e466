"""Work through a folder case by case: a database of cases, and adapters taught on the accepted ones."""
