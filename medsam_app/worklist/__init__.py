"""Work through a folder case by case: a database of cases, and adapters trained on the accepted ones."""
