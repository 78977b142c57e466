"""Labels and spacing in an adapter's card, for automatic mode; read without torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from medsam_app.adapters.header import AdapterCard
from medsam_app.errors import AdapterError, unknown_name


def name_of(value: int, card: AdapterCard) -> str:
    """The name of a label value, 'label 7' where the card has none."""
    return card.labels.get(value, f"label {value}")


def chosen_labels(
    adapter: str, card: AdapterCard, learned: Sequence[int], wanted: Iterable[int | str] | None = None
) -> dict[int, str]:
    """Return the names of the requested label values, in the adapter's order.

    Args:
        adapter: its name, for messages.
        card: names its labels.
        learned: values of the labels for which the adapter holds learned prompts.
        wanted: values or names of the labels that are wanted; None for all.

    Raises:
        AdapterError: it has learned no labels, or not one that is wanted.
    """
    if not learned:
        raise AdapterError(
            f"The adapter '{adapter}' was taught no labels that it can find without a click; click on the "
            "object, or give an adapter that was."
        )
    names = {value: name_of(value, card) for value in learned}
    if wanted is None:
        return names
    by_text = {name: value for value, name in names.items()} | {str(value): value for value in names}
    asked = [str(each) for each in wanted]
    if not asked:
        raise AdapterError(f"No label was chosen; choose of {', '.join(by_text)}, or leave the choice out.")
    for each in asked:
        if each not in by_text:
            raise AdapterError(unknown_name("label", each, by_text))
    chosen = {by_text[each] for each in asked}
    return {value: name for value, name in names.items() if value in chosen}


def spacing_of(adapter: str, card: AdapterCard) -> tuple[float, float, float]:
    """Mm along the axes of the windows in which a label is looked for.

    Raises:
        AdapterError: the card does not say, and without a click nothing else does.
    """
    if card.spacing is None:
        raise AdapterError(
            f"The adapter '{adapter}' does not say at which spacing it was taught, which nothing else says "
            "without a click; click on the object, or save the adapter again with 'spacing' in its card."
        )
    return card.spacing
