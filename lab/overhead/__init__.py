"""What a head costs beside the trunk: parameters, memory, training steps, the parts of a decoding cycle."""
