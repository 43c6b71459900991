"""Whole runs of the decoder, recorded: steps, offload, hybrid, overlap and serving."""
