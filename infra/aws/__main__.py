"""What the platform of one environment stands on in AWS: network, cluster, bucket, database, identities, alarms."""

from infra.aws.cloud import Cloud
from infra.aws.components.alarms import Alarms
from infra.aws.components.bucket import Bucket
from infra.aws.components.cluster import Cluster
from infra.aws.components.database import Database
from infra.aws.components.identities import Identities
from infra.aws.components.network import Network
from infra.aws.outputs import Outputs

cloud = Cloud()

network = Network("network", cloud)
cluster = Cluster("cluster", cloud, network)
bucket = Bucket("bucket", cloud)
database = Database("database", cloud, network, cluster) if cloud.settings.database.kind == "create" else None
Identities("identities", cloud, cluster.cluster_name, database.secret if database else "")
Alarms("alarms", cloud, network, database)

Outputs(
    region=cloud.region,
    cluster_name=cluster.cluster_name,
    cluster_arn=cluster.arn,
    cluster_endpoint=cluster.endpoint,
    cluster_certificate=cluster.certificate,
    bucket=bucket.bucket_name,
    database_host=database.host if database else "",
    database_secret=database.secret if database else "",
    approval_key=cloud.approval_key,
).export()
