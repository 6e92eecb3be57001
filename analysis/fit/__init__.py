"""Laws fitted to runs: what prefill and decode take and cost by length, and what a step costs.

model = fit([load(path), ...])
model["t_decode"]["eta"]                   # a coefficient with its interval
model.request(1200, 52).energy_j           # what one request is expected to cost
write_model(model, Path("model.json"))     # read_model reads it back as it was
Attribution(run, weights=model.weights)    # its physical form divides another run's energy
"""

from analysis.fit.file import as_object, read_model, write_model
from analysis.fit.fitting import fit
from analysis.fit.model import FitError, Fitted, Model, Prediction, Range, RequestCost, Residuals, Term

__all__ = [
    "FitError",
    "Fitted",
    "Model",
    "Prediction",
    "Range",
    "RequestCost",
    "Residuals",
    "Term",
    "as_object",
    "fit",
    "read_model",
    "write_model",
]
