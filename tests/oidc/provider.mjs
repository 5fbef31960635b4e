// An OpenID Connect provider on loopback for tests/system/oidc_test.py: oidc-provider (certified), with accounts of its
// own and a back door under /test/ by which the test makes it rotate its keys, sign by another algorithm, or lie.
//     node provider.mjs PORT [CERTIFICATE KEY]      (PEM files: over TLS; the client's secret comes in CLIENT_SECRET)
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import * as jose from 'jose';
import Provider from 'oidc-provider';

const [, , port, certificate, key] = process.argv;
const issuer = `${certificate ? 'https' : 'http'}://127.0.0.1:${port}`;
const people = {
  'subject-4711': { preferred_username: 'alice', email: 'alice@lab.example', email_verified: true, groups: ['staff', 'ml'] },
  'subject-4712': { preferred_username: 'oscar', email: 'oscar@lab.example', email_verified: true, groups: ['gpu-admins'] },
  'subject-4713': { preferred_username: 'bob', email: 'bob@lab.example', email_verified: false, groups: ['ml'] },
  'subject-4714': { preferred_username: 'carol', email: 'carol@lab.example', email_verified: true, groups: ['visitors'] },
  'subject-4715': { preferred_username: 'mallory', email: 'mallory@lab.example.org', email_verified: true, groups: ['ml'] },
};
let alg = 'RS256', keys, provider, handler;
let lie = '', slow = false, started = 0, session = '';

async function makeKeys() {
  const kinds = [['RS256', {}], ['ES256', {}], ['EdDSA', { crv: 'Ed25519' }]];
  keys = [];
  for (const [kind, options] of kinds) {
    const { privateKey } = await jose.generateKeyPair(kind, { extractable: true, ...options });
    keys.push({ ...await jose.exportJWK(privateKey), kid: `${kind}-${++started}`, use: 'sig' });
  }
}

// What the provider never does by itself: an ID token with its own signature and something wrong in it.
async function falsified(token, change) {
  const header = jose.decodeProtectedHeader(token);
  const signer = await jose.importJWK(keys.find((each) => each.kid === header.kid), header.alg);
  return new jose.SignJWT(change(jose.decodeJwt(token))).setProtectedHeader(header).sign(signer);
}
const lies = {
  audience: (claims) => ({ ...claims, aud: 'another-program' }),
  issuer: (claims) => ({ ...claims, iss: `${issuer}/` }),
  nonce: (claims) => ({ ...claims, nonce: 'of-another-login' }),
  clock: (claims) => ({ ...claims, iat: claims.iat + 3600, exp: claims.exp + 3600 }),
};

function start() {
  provider = new Provider(issuer, {
    clients: [{
      client_id: 'muster',
      client_secret: process.env.CLIENT_SECRET,
      application_type: 'native',
      redirect_uris: ['http://127.0.0.1/callback'],
      grant_types: ['authorization_code', 'urn:ietf:params:oauth:grant-type:device_code'],
      response_types: ['code'],
      ...(process.env.LOGOUT_URI ? { backchannel_logout_uri: process.env.LOGOUT_URI, backchannel_logout_session_required: true } : {}),
      id_token_signed_response_alg: alg,
    }],
    enabledJWA: { idTokenSigningAlgValues: ['RS256', 'PS256', 'ES256', 'EdDSA'] },
    scopes: ['openid', 'profile', 'email', 'groups'],
    claims: { openid: ['sub'], profile: ['preferred_username'], email: ['email', 'email_verified'], groups: ['groups'] },
    features: { devInteractions: { enabled: true }, deviceFlow: { enabled: true }, backchannelLogout: { enabled: true } },
    pkce: { required: () => true },
    findAccount: (_, id) => (people[id] ? { accountId: id, claims: () => ({ sub: id, ...people[id] }) } : undefined),
    jwks: { keys },
    cookies: { keys: ['of the test'] },
    ttl: { AccessToken: 300, AuthorizationCode: 60, DeviceCode: 600, Grant: 600, IdToken: 300, Interaction: 600, Session: 600 },
  });
  provider.use(async (ctx, next) => {
    await next();
    const route = ctx.oidc?.route;
    if (route === 'device_authorization' && ctx.body?.device_code) ctx.body.interval = 1;
    if (route !== 'token') return;
    if (slow && ctx.body?.error === 'authorization_pending') {
      slow = false;
      ctx.body = { error: 'slow_down' };
    }
    if (ctx.body?.id_token) session = jose.decodeJwt(ctx.body.id_token).sid ?? '';
    if (lie && ctx.body?.id_token) ctx.body.id_token = await falsified(ctx.body.id_token, lies[lie]);
  });
  handler = provider.callback();
}

// A logout token as oidc-provider makes them, changed as the test asks; "SESSION" is that of the last login.
async function logoutToken(change) {
  const now = Math.floor(Date.now() / 1000);
  const claims = {
    iss: issuer, aud: 'muster', iat: now, exp: now + 120, jti: `jti-${Math.random()}`, sid: session,
    events: { 'http://schemas.openid.net/event/backchannel-logout': {} }, ...change,
  };
  for (const name of Object.keys(claims)) if (claims[name] === null) delete claims[name];
  if (claims.sid === 'SESSION') claims.sid = session;
  const key = keys.find((each) => each.kid.startsWith('EdDSA'));
  return new jose.SignJWT(claims).setProtectedHeader({ alg: 'EdDSA', kid: key.kid, typ: 'logout+jwt' }).sign(await jose.importJWK(key, 'EdDSA'));
}

async function backDoor(url) {
  const value = url.searchParams.get('to') ?? '';
  if (url.pathname === '/test/rotate') await makeKeys();
  else if (url.pathname === '/test/alg') alg = value;
  else if (url.pathname === '/test/slow') slow = true;
  else if (url.pathname === '/test/lie') lie = value;
  else if (url.pathname === '/test/groups') people[value.split(':')[0]].groups = value.split(':')[1].split(',');
  else if (url.pathname === '/test/logout-token') return [200, await logoutToken(JSON.parse(value || '{}'))];
  else return 404;
  if (url.pathname === '/test/rotate' || url.pathname === '/test/alg') start();
  return 200;
}

await makeKeys();
start();
const serve = (request, response) => {
  const url = new URL(request.url, issuer);
  if (!url.pathname.startsWith('/test/')) {
    handler(request, response);
    return;
  }
  backDoor(url).then((done) => response.writeHead([done].flat()[0]).end([done].flat()[1]), (fault) => response.writeHead(500).end(String(fault)));
};
const server = certificate ? createTlsServer({ cert: readFileSync(certificate), key: readFileSync(key) }, serve) : createServer(serve);
server.listen(Number(port), '127.0.0.1', () => console.log('ready'));
