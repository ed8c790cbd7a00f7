"""Slots to a container on the disk, whole or not at all."""
