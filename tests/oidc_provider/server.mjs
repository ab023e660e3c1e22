// An OpenID provider as WLCG has them, for tests: tokens by client_credentials, scopes with paths, any audience.
// argv: certificate, key, and JSON {clients: {id: {secret, scopes: ["storage.read:/store/user", ...], ttl_s}}}.
// It prints its issuer when it listens, and ends with its standard input.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import Provider from 'oidc-provider';

const [cert, key, json] = process.argv.slice(2);
const { clients } = JSON.parse(json);

// A scope with a path is allowed below the path that the client is registered with.
const allows = (registered, wanted) =>
  wanted === registered || (registered.includes(':/') && wanted.startsWith(`${registered}/`));

const resourceServer = (ctx, audience, client) => ({
  audience,
  accessTokenFormat: 'jwt',
  accessTokenTTL: clients[client.clientId].ttl_s ?? 3600,
  scope: (ctx.oidc.params.scope ?? '')
    .split(' ')
    .filter((wanted) => clients[client.clientId].scopes.some((one) => allows(one, wanted)))
    .join(' '),
});

const configuration = {
  clients: Object.entries(clients).map(([client_id, { secret }]) => ({
    client_id,
    client_secret: secret,
    grant_types: ['client_credentials'],
    response_types: [],
    redirect_uris: [],
  })),
  scopes: ['openid', 'offline_access'],
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: false },
    resourceIndicators: {
      enabled: true,
      // INDIGO IAM says "audience" where RFC 8707 says "resource".
      defaultResource: (ctx) => ctx.oidc.body?.audience,
      getResourceServerInfo: resourceServer,
    },
  },
  formats: {
    customizers: {
      jwt: (_ctx, _token, { payload }) => Object.assign(payload, { nbf: payload.iat, 'wlcg.ver': '1.0' }),
    },
  },
};

const server = createServer({ cert: readFileSync(cert), key: readFileSync(key) });
server.listen(0, '127.0.0.1', () => {
  const issuer = `https://localhost:${server.address().port}`;
  server.on('request', new Provider(issuer, configuration).callback());
  console.log(issuer);
});
process.stdin.resume().on('end', () => process.exit());
