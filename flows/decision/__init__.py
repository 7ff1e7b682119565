"""Which model, run where, and what is missing for it: what `headrace decide` says, by rules with reasons."""
