"""Measure models and adapters on labelled cases, with statistics and a report: `medsam-app evaluate`."""
