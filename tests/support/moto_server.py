"""A foreign S3 server for a test: moto, which checks signatures and what a user may do, as AWS does.

Prints a line of JSON with port, access key and secret key, and serves until its standard input ends.
"""

import json
import sys
import urllib.request

import boto3
import botocore.config
from moto.server import ThreadedMotoServer

BUCKET = "bucket"


def main():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    url = "http://127.0.0.1:%d" % port
    first = {
        "endpoint_url": url,
        "region_name": "us-east-1",
        "aws_access_key_id": "first",
        "aws_secret_access_key": "first",
        "config": botocore.config.Config(proxies={}),
    }
    iam = boto3.client("iam", **first)
    iam.create_user(UserName="publisher")
    statement = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName="publisher", PolicyName="all", PolicyDocument=policy)
    key = iam.create_access_key(UserName="publisher")["AccessKey"]
    boto3.client("s3", **first).create_bucket(Bucket=BUCKET)
    # From here on every request must be signed.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(urllib.request.Request(url + "/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"})).read()
    print(json.dumps({"port": port, "access_key": key["AccessKeyId"], "secret_key": key["SecretAccessKey"]}), flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
