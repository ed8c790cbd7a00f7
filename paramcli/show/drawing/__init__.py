"""Spectra and residuals as pictures: characters for a terminal, SVG, PNG. No torch, nothing read from files."""
