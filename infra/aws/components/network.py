from ipaddress import ip_network
from typing import Any

import pulumi
import pulumi_aws as aws

from infra.aws.cloud import Cloud
from infra.aws.program import allow, document, trust
from infra.aws.settings import WITHOUT_EKS, Settings, listed
from infra.component import Component

# What nodes and pods ask of AWS, where nothing leaves the network.
_ENDPOINTS = (
    "ec2", "ecr.api", "ecr.dkr", "eks", "eks-auth", "elasticloadbalancing", "kms", "logs", "secretsmanager", "sts",
)  # fmt: skip
_EVERYBODY = "0.0.0.0/0"


class Network(Component):
    """Private subnets for nodes and database, public ones for load balancers and NAT alone."""

    program: Cloud
    settings: Settings

    def create(self) -> None:
        settings = self.settings.network
        if settings.kind == "existing":
            self.vpc: pulumi.Input[str] = settings.vpc
            self.private: list[pulumi.Input[str]] = list(listed(settings.subnets))
            self.nat: list[aws.ec2.NatGateway] = []
            return
        vpc = aws.ec2.Vpc(
            "vpc",
            cidr_block=settings.cidr,
            enable_dns_hostnames=True,
            enable_dns_support=True,
            tags={"Name": self.program.name},
            opts=self.child,
        )
        self.vpc = vpc.id
        aws.ec2.DefaultSecurityGroup("default", vpc_id=vpc.id, ingress=[], egress=[], opts=self.child)
        self._flow_logs()
        blocks = list(ip_network(settings.cidr).subnets(4))
        public = [self._subnet("public", "elb", zone, str(blocks[8 + zone])) for zone in range(settings.zones)]
        private = [self._subnet("private", "internal-elb", zone, str(blocks[zone])) for zone in range(settings.zones)]
        gateway = aws.ec2.InternetGateway("internet", vpc_id=vpc.id, opts=self.child)
        self._routes("public", public, {"gateway_id": gateway.id})
        self.nat = [self._nat(zone, public[zone], gateway) for zone in range(settings.nat_gateways)]
        tables = [
            self._routes(
                f"private-{zone}", [subnet], {"nat_gateway_id": self.nat[zone % len(self.nat)].id} if self.nat else {}
            )
            for zone, subnet in enumerate(private)
        ]
        self.private = [subnet.id for subnet in private]
        self._s3_endpoint([table.id for table in tables])  # free, and models pass no NAT
        if not self.nat:
            self._endpoints()

    def _subnet(self, kind: str, balancers: str, zone: int, block: str) -> aws.ec2.Subnet:
        invoke = pulumi.InvokeOptions(provider=self.program.provider)
        no_opt_in: Any = [{"name": "opt-in-status", "values": ["opt-in-not-required"]}]
        zones = aws.get_availability_zones_output(
            state="available", filters=no_opt_in, exclude_zone_ids=list(WITHOUT_EKS), opts=invoke
        )
        return aws.ec2.Subnet(
            f"{kind}-{zone}",
            vpc_id=self.vpc,
            cidr_block=block,
            availability_zone=zones.names[zone],
            map_public_ip_on_launch=False,
            tags={"Name": f"{self.program.name}-{kind}-{zone}", f"kubernetes.io/role/{balancers}": "1"},
            opts=self.child,
        )

    def _routes(
        self, name: str, subnets: list[aws.ec2.Subnet], gateway: dict[str, pulumi.Input[str]]
    ) -> aws.ec2.RouteTable:
        tags = {"Name": f"{self.program.name}-{name}"}
        table = aws.ec2.RouteTable(name, vpc_id=self.vpc, tags=tags, opts=self.child)
        if gateway:
            about = {"route_table_id": table.id, "destination_cidr_block": _EVERYBODY, **gateway}
            aws.ec2.Route(name, **about, opts=self.child)
        for index, subnet in enumerate(subnets):
            aws.ec2.RouteTableAssociation(
                f"{name}-{index}", subnet_id=subnet.id, route_table_id=table.id, opts=self.child
            )
        return table

    def _nat(self, zone: int, subnet: aws.ec2.Subnet, gateway: aws.ec2.InternetGateway) -> aws.ec2.NatGateway:
        opts, tags = pulumi.ResourceOptions(parent=self, depends_on=[gateway]), {"Name": f"{self.program.name}-{zone}"}
        address = aws.ec2.Eip(f"nat-{zone}", domain="vpc", tags=tags, opts=opts)
        about: Any = {"allocation_id": address.id, "subnet_id": subnet.id, "tags": tags}
        return aws.ec2.NatGateway(f"nat-{zone}", **about, opts=opts)

    def _s3_endpoint(self, tables: list[pulumi.Output[str]]) -> None:
        aws.ec2.VpcEndpoint(
            "s3",
            vpc_id=self.vpc,
            service_name=f"com.amazonaws.{self.program.region}.s3",
            vpc_endpoint_type="Gateway",
            route_table_ids=tables,
            opts=self.child,
        )

    def _endpoints(self) -> None:
        cidr = self.settings.network.cidr
        group = aws.ec2.SecurityGroup("endpoints", vpc_id=self.vpc, description="Endpoints of AWS", opts=self.child)
        rule: Any = {"security_group_id": group.id, "cidr_ipv4": cidr, "description": "From inside"}
        rule |= {"ip_protocol": "tcp", "from_port": 443, "to_port": 443}
        aws.vpc.SecurityGroupIngressRule("endpoints", **rule, opts=self.child)
        for service in _ENDPOINTS:
            aws.ec2.VpcEndpoint(
                service.replace(".", "-"),
                vpc_id=self.vpc,
                service_name=f"com.amazonaws.{self.program.region}.{service}",
                vpc_endpoint_type="Interface",
                private_dns_enabled=True,
                subnet_ids=self.private,
                security_group_ids=[group.id],
                opts=self.child,
            )

    def _flow_logs(self) -> None:
        """Of what was refused: little, and what one looks for."""
        group = self.program.logs("flows", f"/{self.program.name}/flows", self.child)
        trusted = trust("vpc-flow-logs.amazonaws.com", Condition=self.program.from_here)
        role = self.program.role("flows", trusted, self.child)
        actions = ["logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"]
        write = document(allow(actions, pulumi.Output.concat(group.arn, ":*")))
        policy = aws.iam.RolePolicy("flows", role=role.name, policy=write, opts=self.child)
        aws.ec2.FlowLog(
            "flows",
            vpc_id=self.vpc,
            traffic_type="REJECT",
            log_destination=group.arn,
            iam_role_arn=role.arn,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[policy]),
        )
