"""The log and what makes it believable: leaves, their tree, checkpoints, witnesses, and what anybody may fetch of them."""
