"""The LightningModule that trains, its schedule, and what happens around its steps."""
