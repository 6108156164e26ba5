"""How a vision-language model of any family is asked, and where its parts and image tokens are."""
