from mlops import promotion
from mlops.bundle import Bundle
from mlops.environment import Environment
from tests import synthetic
from tests.service import Service


def test_a_release_answers_and_the_next_one_takes_over(
    environment: Environment, first_bundle: Bundle, second_bundle: Bundle
) -> None:
    with Service(environment, synthetic.MODEL) as service:
        assert service.http.get("/readyz").status_code == 200
        empty = service.http.post("/predict", json={"rows": [synthetic.request()]})
        assert (empty.status_code, empty.json()["detail"]) == (503, "no model released")
        for revision, bundle in enumerate((first_bundle, second_bundle), 1):
            promotion.release(environment.model(synthetic.MODEL), synthetic.publish(environment, bundle), "test")
            service.serves(revision)
            assert service.predict(synthetic.request())["model_version"] == bundle.digest
