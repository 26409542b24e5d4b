// Sign up, log in, list, and get by an id from the list; client: openapi-generator.
import { AuthApi, Configuration, PostApi, ResponseError, UserApi } from "./client/index.js";

const [basePath = "", username = ""] = process.argv.slice(2);
const password = "Blue7horse";
const email = `${username}@example.com`;

const anonymous = new Configuration({ basePath });
const created = await new UserApi(anonymous).createUser({
  createUserRequest: { email, username, password },
});
const tokens = await new AuthApi(anonymous).login({
  loginRequest: { identifier: email, password },
});
const configuration = new Configuration({ basePath, accessToken: tokens.accessToken });
const users = new UserApi(configuration);
const page = await users.listUsers({ usernamePrefix: username, sortBy: "-created_at" });
const [first] = page.items;
if (first === undefined) {
  throw new Error("the list is empty");
}
const user = await users.getUser({ id: first.id });
const api = new PostApi(configuration);
await api.createPost({
  createPostRequest: { title: "Hello", body: "World", categoryId: "0" },
});
const posts = await api.listPosts({ authorId: user.id });
if (user.id !== created.id || posts.items[0]?.authorId !== user.id) {
  throw new Error("the ids differ");
}
try {
  await users.getUser({ id: "999999999" });
  throw new Error("expected a response error");
} catch (error) {
  if (!(error instanceof ResponseError) || error.response.status !== 404) {
    throw error;
  }
}
console.log(`id ${user.id}`);
