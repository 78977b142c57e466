"""Identities of models, and the keys of their cached outputs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from medsam_app.models.identity import ModelIdentity, cache_key
from medsam_app.models.sam3d import build_sam3d_tiny


def test_an_identity_is_that_of_the_moment() -> None:
    model = build_sam3d_tiny()
    before = ModelIdentity.of(model)
    assert before == ModelIdentity("unnamed", "")
    model.adapter_id, model.adapter_sha256 = "liver", "a" * 64
    assert ModelIdentity.of(model) == replace(before, adapter_id="liver", adapter_sha256="a" * 64)


@pytest.mark.parametrize("field", ["model_id", "weights_sha256", "adapter_sha256"])
def test_outputs_of_other_models_have_other_keys(field: str) -> None:
    one, two = build_sam3d_tiny(), build_sam3d_tiny()
    assert cache_key(one) == cache_key(one)
    assert cache_key(one) != cache_key(two)  # untrained weights have no hash
    one.weights_sha256 = two.weights_sha256 = "b" * 64
    assert cache_key(one) == cache_key(two)
    setattr(two, field, "c" * 64)
    assert cache_key(one) != cache_key(two)
