import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

from mlops.contract import Contract


def preprocess(contract: Contract) -> ColumnTransformer:
    """A column for each of the few airports of departure; carriers and a hundred destinations by number."""
    numbers = [name for name, feature in contract.features.items() if feature.type == "number"]
    by_number = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, dtype=np.float32)
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False, dtype=np.float32)
    return ColumnTransformer(
        [
            ("numbers", "passthrough", numbers),
            ("origin", one_hot, ["origin"]),
            ("categories", by_number, ["carrier", "dest"]),
        ]
    )
