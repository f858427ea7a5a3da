"""Takes residents' requests in: places, classifies, seals and commits them."""
