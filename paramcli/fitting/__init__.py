"""A value to originals and back, and what is measured of it: fit, bake, measure."""
