"""SAM backbones, the table of models, their checkpoints and the embedded weights."""

if __name__ != "medsam_app.models":
    raise ImportError(
        f"This folder is a part of medsam_app and is imported as 'medsam_app.models', not as '{__name__}'."
    )
