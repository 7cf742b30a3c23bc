"""The road of a change from pull request to production, as commands: `mlops ci VERB`. Workflows call them, one in a step."""
