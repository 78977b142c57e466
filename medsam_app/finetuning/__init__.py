"""Fine-tuning on labelled cases: plan, memory, training, validation."""
