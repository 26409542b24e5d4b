"""Sign up, log in, list, and get by an id from the list; client: openapi-generator."""

import sys

from academy_client import (
    ApiClient,
    AuthApi,
    Configuration,
    CreatePostRequest,
    CreateUserRequest,
    LoginRequest,
    PostApi,
    UserApi,
)
from academy_client.exceptions import NotFoundException

PASSWORD = "Blue7horse"


def main(host: str, username: str) -> str:
    email = f"{username}@example.com"
    with ApiClient(Configuration(host=host)) as client:
        account = CreateUserRequest(email=email, username=username, password=PASSWORD)
        created = UserApi(client).create_user(account)
        login = LoginRequest(identifier=email, password=PASSWORD)
        tokens = AuthApi(client).login(login)
    configuration = Configuration(host=host, access_token=tokens.access_token)
    with ApiClient(configuration) as client:
        users, api = UserApi(client), PostApi(client)
        page = users.list_users(username_prefix=username, sort_by="-created_at")
        user = users.get_user(page.items[0].id)
        post = CreatePostRequest(title="Hello", body="World", categoryId="0")
        api.create_post(post)
        posts = api.list_posts(author_id=user.id)
        assert posts.items[0].author_id == user.id == created.id
        try:
            users.get_user("999999999")
        except NotFoundException:
            return user.id
    raise AssertionError("expected a 404")


sys.stdout.write(f"id {main(*sys.argv[1:])}\n")
