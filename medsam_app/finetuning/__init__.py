"""Train adapters on labelled cases: plan, memory, training, validation: `medsam-app finetune`."""
