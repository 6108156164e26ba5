"""Makes transformers' Auto classes know Poise, without importing transformers (and with it torch) for `import poise`.

After `import poise`, `AutoModelForImageTextToText.from_pretrained(folder)` loads a Poise folder; the order of the two
imports does not matter. The Auto classes are told through their public `register`, which wants the classes themselves,
so Poise's modules must be imported by then. Doing that in `import poise` would cost seconds in `poise --help`. So:

* Auto classes that are imported already are told at once.
* The others are told when their module has been imported. A finder in front of `sys.meta_path` sees those imports.

The moment matters. transformers' own modules import the Auto classes half-way (`modeling_layers` needs `AutoModel`
before it defines `GradientCheckpointingLayer`), and our modeling files need those modules whole. Therefore registration
waits until the *outermost* import of a transformers or Poise module in this thread has run to its end: then none of
them is half imported. With everything registered the finder removes itself.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

WATCHED_PACKAGES = ("transformers", "poise")


def _register_config() -> None:
    from transformers import AutoConfig

    from poise.modeling.configuration_dual_encoder import PoiseDualEncoderConfig
    from poise.modeling.configuration_poise import PoiseConfig
    from poise.modeling.configuration_vlm_router import VlmRouterConfig

    AutoConfig.register(PoiseConfig.model_type, PoiseConfig)
    AutoConfig.register(VlmRouterConfig.model_type, VlmRouterConfig)
    AutoConfig.register(PoiseDualEncoderConfig.model_type, PoiseDualEncoderConfig)


def _register_models() -> None:
    from transformers import (
        AutoModel,
        AutoModelForImageTextToText,
        AutoModelForMultimodalLM,
        AutoModelForZeroShotImageClassification,
    )
    from transformers.models.auto import modeling_auto

    from poise.modeling.configuration_dual_encoder import PoiseDualEncoderConfig
    from poise.modeling.configuration_poise import PoiseConfig
    from poise.modeling.configuration_vlm_router import VlmRouterConfig
    from poise.modeling.modeling_dual_encoder import PoiseDualEncoder
    from poise.modeling.modeling_poise import PoiseForConditionalGeneration, PoiseModel
    from poise.modeling.modeling_vlm_router import RoutedVlm

    AutoModel.register(PoiseConfig, PoiseModel)
    AutoModelForImageTextToText.register(PoiseConfig, PoiseForConditionalGeneration)
    AutoModelForMultimodalLM.register(PoiseConfig, PoiseForConditionalGeneration)
    # `transformers serve` asks this table of names, and nothing else, whether it can load a model.
    modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES[PoiseConfig.model_type] = PoiseForConditionalGeneration.__name__
    AutoModelForImageTextToText.register(VlmRouterConfig, RoutedVlm)
    # transformers' own would send weights alone. Published code cannot hold this: it runs where there is no Poise.
    PoiseForConditionalGeneration.push_to_hub = _push_to_hub
    AutoModel.register(PoiseDualEncoderConfig, PoiseDualEncoder)
    AutoModelForZeroShotImageClassification.register(PoiseDualEncoderConfig, PoiseDualEncoder)


def _push_to_hub(model, repo_id: str, **options):
    """Publishes the model as `poise publish` does; see `poise.hub_cards.push_to_hub` for the options."""
    from poise.hub_cards.publishing.model_push import push_to_hub

    return push_to_hub(model, repo_id, **options)


def _register_processor() -> None:
    from transformers import AutoProcessor, VisionTextDualEncoderProcessor

    from poise.modeling.configuration_dual_encoder import PoiseDualEncoderConfig
    from poise.modeling.configuration_poise import PoiseConfig
    from poise.processing.processing_poise import PoiseProcessor

    AutoProcessor.register(PoiseConfig, PoiseProcessor)
    AutoProcessor.register(PoiseDualEncoderConfig, VisionTextDualEncoderProcessor)


# Module that defines the Auto class -> what is to be done once it is there.
REGISTRATIONS: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.processing_auto": _register_processor,
}


class AutoRegistration(MetaPathFinder):
    """Finds nothing itself: lets the other finders find, and counts how deep in watched imports this thread is."""

    def __init__(self, registrations: dict[str, Callable[[], None]] = REGISTRATIONS):
        self.pending = dict(registrations)
        self._depth = threading.local()
        self._busy = threading.Lock()
        self._ask_again = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in WATCHED_PACKAGES:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)  # finders of the old kind have none; importlib skips them too
            spec = None if finder is self or find is None else find(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    self._watch(spec.loader)
                return spec
        return None

    def _watch(self, loader: Loader) -> None:
        """Lets `loader` tell when it begins and ends. It stays the same object, so `get_source` and resources work."""
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            loader.__dict__.pop("exec_module", None)  # the method of the class is visible again
            self._depth.value = getattr(self._depth, "value", 0) + 1
            try:
                execute(module)
            finally:
                self._depth.value -= 1
            if self._depth.value == 0:
                self.register_what_is_ready()

        loader.exec_module = exec_module  # type: ignore[method-assign]

    def register_what_is_ready(self) -> None:
        """Tells every Auto class that is imported by now; the finder leaves once all of them know."""
        # Never waits for another thread: that one may be waiting for the import lock of the module which this thread
        # is about to finish. It looks once more before it leaves instead.
        self._ask_again = True
        while self._ask_again and self._busy.acquire(blocking=False):
            try:
                self._ask_again = False
                for module in [name for name in self.pending if name in sys.modules]:
                    # Registering imports, and those imports end here again: they find the lock taken and go on.
                    self.pending[module]()
                    del self.pending[module]
                if not self.pending and self in sys.meta_path:
                    sys.meta_path.remove(self)
            finally:
                self._busy.release()


def register_auto_classes() -> None:
    """Registers at once with the Auto classes that are imported, and with the others as soon as they are."""
    if any(isinstance(finder, AutoRegistration) for finder in sys.meta_path):
        return
    registration = AutoRegistration()
    sys.meta_path.insert(0, registration)
    registration.register_what_is_ready()
