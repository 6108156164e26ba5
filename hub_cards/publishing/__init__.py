"""From a trained run to a Hub repository: the folder, the self-check without Poise, the upload."""
