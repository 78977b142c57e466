"""Version of the package, read where no other module may be imported."""

__version__ = "0.1.0"
