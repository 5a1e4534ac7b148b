"""A cluster of several real raylets in a process of its own, not a test, controlled by lines on stdin.

`add CPUS [ENVIRONMENT AS JSON]` starts a node and answers with its number; `kill NUMBER` or `kill head` kills a node
and answers `killed`; the end of stdin stops the cluster. The head carries no work, as in cluster.yaml.
"""

import json
import sys

from ray.cluster_utils import Cluster


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = []
    print(cluster.address, flush=True)
    for line in sys.stdin:
        command, *words = line.strip().split(" ", 2)
        if command == "add":
            environment = json.loads(words[1]) if len(words) > 1 else None
            nodes.append(
                cluster.add_node(num_cpus=int(words[0]), object_store_memory=200_000_000, env_vars=environment)
            )
            print(len(nodes) - 1, flush=True)
        elif command == "kill":
            node = cluster.head_node if words[0] == "head" else nodes[int(words[0])]
            cluster.remove_node(node, allow_graceful=False)
            print("killed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
