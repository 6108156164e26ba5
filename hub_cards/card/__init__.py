"""The model card: what is collected for it, its tables and plots, licences and cited works, the template."""
