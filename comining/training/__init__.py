"""The LightningModule that trains, its schedule, and its callbacks."""
