"""Generation: samplers, beam search, sessions and caches for `VisionLanguageModel.generate`."""

from dl_techniques.generation.beam_search import BeamSearch
from dl_techniques.generation.sampling import Sampler
from dl_techniques.generation.scoring import Score
from dl_techniques.generation.session import Session
from dl_techniques.generation.vision_cache import VisionCache

__all__ = ["BeamSearch", "Sampler", "Score", "Session", "VisionCache"]
