"""A linear map that starts at zero, so that the branch it closes starts as if it were not there."""

from transformers import initialization as init

from .linear_product import Linear


class ZeroLinear(Linear):
    """`nn.Linear` whose weight and bias start at zero: [..., in] → [..., out]."""

    # A class of its own and not a line in its parent's initialization: transformers skips the initialization of remote
    # modules that own no parameter themselves.
    def init_own_weights(self, std):
        init.zeros_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)
