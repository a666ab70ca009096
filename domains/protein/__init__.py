"""Protein backbones: CA traces in nm, distilled from flows of the Proteina family."""
