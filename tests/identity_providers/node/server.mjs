// A provider with one client, on a free loopback port; it prints its issuer.
// Each account exists, with a verified address. CLIENT holds the client.
import { createServer } from "node:http";
import Provider from "oidc-provider";

const server = createServer();
server.listen(0, "127.0.0.1", () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    clients: [JSON.parse(process.env.CLIENT)],
    claims: { email: ["email", "email_verified"], profile: ["preferred_username"] },
    pkce: { required: () => true },
    findAccount: (_context, id) => ({
      accountId: id,
      claims: () => ({
        sub: id,
        email: `${id}@node.example`,
        email_verified: true,
        preferred_username: `${id}_of_node`,
      }),
    }),
  });
  server.on("request", provider.callback());
  console.log(`issuer ${issuer}`);
});
