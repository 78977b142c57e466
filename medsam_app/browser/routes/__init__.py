"""HTTP routes and named endpoints."""
