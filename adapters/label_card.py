"""Labels and spacing of an adapter's card, for automatic mode; free of torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from medsam_app.adapters.header import AdapterCard
from medsam_app.errors import AdapterError, unknown_name


def name_of(value: int, card: AdapterCard) -> str:
    """Return the name of a label value; 'label 7' if the card has no name for 7."""
    return card.labels.get(value, f"label {value}")


def chosen_labels(
    adapter: str, card: AdapterCard, learned: Sequence[int], requested: Iterable[int | str] | None = None
) -> dict[int, str]:
    """Return the names of the requested label values, in the adapter's order.

    Args:
        adapter: name of the adapter, for error messages.
        card: card of the adapter, with the names of its labels.
        learned: label values with learned prompts.
        requested: label values or names; None for all.

    Raises:
        AdapterError: The adapter has no learned labels, or not all of the requested ones.
    """
    if not learned:
        raise AdapterError(
            f"The adapter '{adapter}' was taught no labels that it can find without a click; click on the "
            "object, or give an adapter that was."
        )
    names = {value: name_of(value, card) for value in learned}
    if requested is None:
        return names
    values = {name: value for value, name in names.items()} | {str(value): value for value in names}
    texts = [str(text) for text in requested]
    if not texts:
        raise AdapterError(f"No label was chosen; choose of {', '.join(values)}, or leave the choice out.")
    for text in texts:
        if text not in values:
            raise AdapterError(unknown_name("label", text, values))
    selected = {values[text] for text in texts}
    return {value: name for value, name in names.items() if value in selected}


def spacing_of(adapter: str, card: AdapterCard) -> tuple[float, float, float]:
    """Return the spacing in mm, along (x, y, z), of the windows in which labels are segmented.

    Raises:
        AdapterError: The card has no spacing; without a click nothing else determines it.
    """
    if card.spacing is None:
        raise AdapterError(
            f"The adapter '{adapter}' does not say at which spacing it was taught, which nothing else says "
            "without a click; click on the object, or save the adapter again with 'spacing' in its card."
        )
    return card.spacing
