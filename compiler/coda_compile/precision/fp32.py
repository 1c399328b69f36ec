"""fp32: the model as it was trained."""

from coda_compile.precision import Precision
from coda_compile.verify.parity import Tolerances

RECIPE = Precision("fp32", "as trained", bits=32, elsewhere=Tolerances())
