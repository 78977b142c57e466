"""From prompts, or from the labels of an adapter, to a mask on the volume's grid."""
