// An OpenID provider as WLCG has them, for tests: tokens by client_credentials, scopes with paths, any audience.
// argv: certificate, key, and JSON {id: {secret, scopes: ["storage.read:/store/user", ...], ttl_s, lenient}};
// a lenient one is given less than it asks for, where others get the error invalid_scope.
// It prints its issuer when it listens. A line with a number moves its clock on by so many seconds, which it
// says; it ends with its standard input.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { createInterface } from 'node:readline';
import Provider, { errors } from 'oidc-provider';

const [cert, key, json] = process.argv.slice(2);
const clients = JSON.parse(json);

// A scope with a path is allowed below the path that the client is registered with.
const allows = (registered, wanted) =>
  wanted === registered || (registered.includes(':/') && wanted.startsWith(`${registered}/`));

const resourceServer = (ctx, audience, { clientId }) => {
  const { scopes, ttl_s = 3600, lenient = false } = clients[clientId];
  const wanted = (ctx.oidc.params.scope ?? '').split(' ');
  const allowed = wanted.filter((scope) => scopes.some((one) => allows(one, scope)));
  if (!lenient && allowed.length < wanted.length) {
    throw new errors.InvalidScope('requested scope is not allowed', ctx.oidc.params.scope);
  }
  return { audience, accessTokenFormat: 'jwt', accessTokenTTL: ttl_s, scope: allowed.join(' ') };
};

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
      jwt: (_ctx, _token, { payload }) => {
        Object.assign(payload, { nbf: payload.iat, 'wlcg.ver': '1.0' });
      },
    },
  },
};

const server = createServer({ cert: readFileSync(cert), key: readFileSync(key) });
server.listen(0, '127.0.0.1', () => {
  const issuer = `https://localhost:${server.address().port}`;
  server.on('request', new Provider(issuer, configuration).callback());
  console.log(issuer);
});

const realNow = Date.now;
createInterface({ input: process.stdin })
  .on('line', (line) => {
    const before = Date.now;
    Date.now = () => before() + Number(line) * 1000;
    console.log(Date.now() - realNow());
  })
  .on('close', () => process.exit());
