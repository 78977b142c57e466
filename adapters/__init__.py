"""Adapters: small sets of trained tensors added to a frozen backbone."""

if __name__ != "medsam_app.adapters":
    raise ImportError(
        f"This folder is a part of medsam_app and is imported as 'medsam_app.adapters', not as '{__name__}'."
    )
