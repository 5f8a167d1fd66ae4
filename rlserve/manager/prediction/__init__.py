"""What a split of the gangs would come to: rates that were measured, extended by curves to splits that were not."""
