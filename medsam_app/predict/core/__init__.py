"""What all engines share: the engine protocol, predictions, constraints by prompts, caching."""
