"""Prints NAME==LOWEST for each dependency in pyproject.toml: constraints that pip installs with -c."""

import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
for group in (project["dependencies"], *project["optional-dependencies"].values()):
    for requirement in group:
        name, _, lowest = requirement.partition(">=")
        if lowest:
            print(f"{name}=={lowest}")
