"""How long an accelerator takes for what a run does, by its data sheet and the model's size: pure formulas."""
