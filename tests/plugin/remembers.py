"""A plug-in whose modules keep more than they store: what they computed, a bound method, a buffer of the weight."""

from paramcli.plugin import Entry, Parametrization

ABOUT = {"family": "mine", "law": "s X", "maps": (("any", "any"),), "right_inverse": "W / s", "source": "none"}


class Remembers(Parametrization):
    r"""X to sqrt(s) X, s the largest magnitude; the root is computed once."""

    def __init__(self, scale):
        super().__init__()
        self.register_buffer("scale", scale)
        self.known, self.by = {}, self._by

    @classmethod
    def make(cls, value):
        return cls(value.new_ones(()) if value.is_meta else value.abs().max())

    def _by(self, X):
        return X * self.known.setdefault("root", self.scale.sqrt())

    def map(self, X):
        return self.by(X)

    def inverse(self, W):
        return W / self.scale.sqrt()


class Unstored(Parametrization):
    r"""X to s X, with an s that no state dict has."""

    def __init__(self, scale):
        super().__init__()
        self.register_buffer("scale", scale, persistent=False)

    @classmethod
    def make(cls, value):
        return cls(value.new_full((), 2.0))

    def map(self, X):
        return X * self.scale

    def inverse(self, W):
        return W / self.scale


PARAMETRIZATIONS = (
    Entry(name="remembers", summary="scaled", target=Remembers, cost="one pass", **ABOUT),
    Entry(name="unstored", summary="scaled", target=Unstored, cost="one pass", **ABOUT),
)
