"""Task records: their form, their files, other data sets converted to them, mixtures and streams of them."""
