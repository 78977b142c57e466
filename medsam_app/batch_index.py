from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class IndexRow:
    case: str
    outcome: str
    sentence: str
    thumbnail: str | None
    output: str | None
    volumes_ml: Mapping[str, float]
    seconds: float
    unmet: int
    not_found: Sequence[str]


def index_page(rows, *, title, facts):
    return " ".join(r.case for r in rows)
